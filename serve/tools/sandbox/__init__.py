"""What keeps a tool's process from everything that is not its own: the kernel's means, and which of them hold here."""
