"""The questions that an experiment answers, in the order in which report and paper ask them."""

QUESTIONS = (
    "Which classifier with few labels?",
    "Can its probabilities be trusted?",
    "Does it show the right place?",
    "Are its images useful and safe to share?",
    "Which system does what?",
    "How many votes are enough?",
    "Which part is worth what?",
    "What does it cost?",
    "Is the split clean?",
)


def numbered(question: str) -> str:
    """Return a question with its number before it: Snakemake's report sorts its categories by name."""
    return f"{QUESTIONS.index(question) + 1}. {question}"
