"""One agent: how its parts are put together, started and stopped, and what they tell each other.

`parts` names them; `build` makes them (a new part, or a new argument of one), with `reports` for those that tell how
the agent is and `from_settings` for what the settings say. `events` is what they tell each other (who else must know of
something), `self_report` what the agent says of itself (a reason, a reading, a reply to "how are you"). `lifecycle`
starts and stops them; `daemon` is its process.
"""
