"""Routes: how information flows to a prediction, from one forward pass (Ferrando & Voita 2024)."""
