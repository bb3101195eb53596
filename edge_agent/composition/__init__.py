"""How the parts of an agent are put together; `edge_agent.agent` starts and stops them.

`parts` names them; `build` makes them (a new part, or a new argument of one), with `reports` for those that tell how
the agent is and `given` for what the settings say. `news` is what they tell each other (who else must know of
something), `account` what the agent says of itself (a reason, a reading, a reply to "how are you").
"""
