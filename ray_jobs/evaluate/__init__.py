"""A trained model's answers to held-out questions and dialogues, and their scores."""
