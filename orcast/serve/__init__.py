"""The forecast as a live endpoint: an OpenAI-compatible server over a simulated cluster."""
