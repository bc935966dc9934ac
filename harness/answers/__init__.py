"""What is read off the records: questions, surfaces, frontiers, laws, and how they are told."""
