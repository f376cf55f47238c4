"""What a model is worth, with its thoughts and without them.

Read tokens (every token, measured once), statistics, heldout (the score of a run), synthetic,
hard_tokens, thoughts and page; then gold_probability, question_sets, exam_results
and harness; effects refuses settings that would change nothing.
"""

from qs.evaluation.exam_results import Exam
from qs.evaluation.hard_tokens import measure_hard_tokens
from qs.evaluation.heldout import HeldoutScore, heldout_score, measure_heldout
from qs.evaluation.statistics import Estimate
from qs.evaluation.thoughts import read_thoughts
from qs.evaluation.tokens import TokenTable, measure_tokens
