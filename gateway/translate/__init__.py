"""OpenAI to DashScope and back: pure functions, no IO, no clock, safe to repeat."""
