"""An OpenAI-compatible image gateway in front of Alibaba DashScope."""
