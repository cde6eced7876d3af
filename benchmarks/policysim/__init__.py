"""A discrete-event simulation of many GPUs that serve one stream of requests; run by benchmarks/policy_sim.py."""
