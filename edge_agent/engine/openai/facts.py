"""What is known of the backend that asks a server elsewhere: it has no library and no device here."""

from edge_agent.engine.facts import BackendFacts

FACTS = BackendFacts(load="edge_agent.engine.openai.load:load", devices={})
