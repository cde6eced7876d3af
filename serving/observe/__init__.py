"""The service seen from outside: metrics, traces, structured logs. Imports no torch, and traces only when asked for."""
