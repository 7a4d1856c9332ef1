"""Other people's MCP servers, whose tools become tools of this service: connected to, listed, called, never trusted."""
