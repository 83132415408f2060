"""From a tokenized prompt to its last token, from whichever ranks it takes.

    Dispatcher.start ──▶ RankSearch: choose ──▶ Attempt: call it ──▶ first tokens ──▶ RankStream ──▶ client
                             ▲                      │                                     │
                             └── the rank was lost, or the attempt was moved: another ◀───┘
                                 rank goes on from the tokens in `Progress`

`LiveAttempts` has every attempt that hasn't ended, and each of them can be moved:

    for attempt in dispatcher.live.on(replica):
        attempt.move("the rank is being replaced", planned=True)

The ingress imports it.
"""
