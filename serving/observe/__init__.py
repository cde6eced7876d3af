"""The service seen from outside: metrics, traces, structured logs. Imports no torch."""
