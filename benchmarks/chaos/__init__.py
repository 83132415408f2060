"""Whether anything is lost while everything breaks: `python -m benchmarks.chaos --minutes 30 --seed 1`.

plan ──▶ faults ──signals, deploys──▶ graph ◀──HTTP── traffic ◀── requests
            │                           │                │
            └────────▶ report ◀── checks, resources ◀────┘
"""
