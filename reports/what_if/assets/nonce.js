"use strict";
// Style sheets that the page's own scripts make (Dash's, Plotly's) carry the nonce of this answer;
// markup that came with content cannot know it. Loaded before any other script.
{
  const { nonce } = document.querySelector("style[nonce]");
  const made = Document.prototype.createElement;
  Document.prototype.createElement = function (name, ...more) {
    const element = made.call(this, name, ...more);
    if (element instanceof HTMLStyleElement) element.nonce = nonce;
    return element;
  };
}
