"""OpenAI's Responses API: requests made of items, and answers made of items. It is translated into chats."""
