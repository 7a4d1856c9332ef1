"""The pass of every distinct medium through the frozen encoder."""
