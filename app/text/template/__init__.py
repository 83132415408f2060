"""Chat templates: what they want of a content, what they write, and where in it each message is."""
