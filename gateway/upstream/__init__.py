"""DashScope over HTTP: submit a call, fetch an image."""
