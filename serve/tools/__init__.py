"""The tools that the service can call: one small file per tool or group, run in processes of their own."""
