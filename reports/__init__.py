"""Records to pictures: one-file HTML reports, Plotly figures and terminal tables."""
