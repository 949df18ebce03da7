"""HTTP in, tokens out: the OpenAI API, sessions and provenance over the engine."""
