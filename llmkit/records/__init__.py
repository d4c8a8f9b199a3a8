"""Records of a user's files: conversations, labelled texts, preferences."""
