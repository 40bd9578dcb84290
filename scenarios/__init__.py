"""The questions: scenario schema, the library of scenarios, models and GPUs, and what runs them."""
