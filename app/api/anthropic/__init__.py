"""Anthropic's API (`/v1/messages`): its requests, answers and errors. Knows no HTTP."""
