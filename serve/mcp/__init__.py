"""The service's tools for clients of the Model Context Protocol: listed, found by words, and called at /mcp."""
