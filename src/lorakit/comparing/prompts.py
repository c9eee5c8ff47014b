"""General prompts, which most tasks are not about: what a model should not forget.

Written for this project. Facts, arithmetic, explaining, writing, code, conversation, other
languages and instructions about form, five of each.
"""

PROMPTS: tuple[str, ...] = (
    # facts
    "Which planet of the solar system has the most mass?",
    "Name three rivers that flow through Germany.",
    "What do bees make from nectar, and why do they need it?",
    "Who wrote the play Hamlet, and roughly when?",
    "Why does ice float on water?",
    # arithmetic and reasoning
    "A ticket costs 12 euros. What do seven tickets cost?",
    "What is half of 250, plus 15?",
    "Anna is older than Ben, and Ben is older than Carla. Who is the youngest?",
    "A train leaves at 14:20 and arrives at 16:05. How long does it take?",
    "Put these in order from small to large: 0.5, 0.05, 5, 0.55.",
    # explaining
    "Explain to a ten-year-old how a rainbow comes about.",
    "What is the difference between weather and climate?",
    "Why do we have leap years?",
    "How does a bicycle stay upright while it is moving?",
    "What happens in the body when we sleep?",
    # writing
    "Write two sentences about an old lighthouse in a storm.",
    "Write a short poem about the first snow of the year.",
    "Invent a name and a slogan for a small bakery.",
    "Begin a story with the words: Nobody had opened that door in years.",
    "Describe the smell of a forest after rain.",
    # code
    "Write a Python function that returns the largest number in a list.",
    "What does the command `ls -l` show?",
    "How do I reverse a string in JavaScript?",
    "Explain what a loop is in programming, with one example.",
    "Write an SQL query that counts the rows of a table called orders.",
    # conversation
    "Hello! How are you today?",
    "I feel nervous about a job interview tomorrow. What could help me?",
    "Can you recommend a hobby for someone who likes to be outdoors?",
    "My friend forgot my birthday. Should I say something?",
    "Thank you for your help yesterday!",
    # other languages
    "Wie heißt die Hauptstadt von Österreich?",
    "Traduis en anglais : Le chat dort sur la chaise.",
    "¿Cuántos días tiene una semana?",
    "Scrivi una frase sul mare.",
    "Translate into German: The library is closed on Sundays.",
    # instructions about form
    "List five animals that live in the desert, one on each line.",
    "Answer with yes or no only: Is the sun a star?",
    "Summarise in one sentence why plants need light.",
    "Rewrite this more politely: Send me the report now.",
    "Give me a recipe for pancakes in four steps.",
)
