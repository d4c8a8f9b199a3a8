"""The page: a thin layer of Streamlit over `llmkit.api`, one module for each tab."""
