"""/v1/responses: what clients send, where an answer goes on, what is told and what is kept of it."""
