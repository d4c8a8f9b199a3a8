"""How far one model's predictions are from another's, and on which text."""
