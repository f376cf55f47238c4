"""STaR (arXiv:2203.14465): a model trained on its own rationales that reach the right answer.

Read tasks (problems as texts), then round (one round, no training), then run (rounds on disk) and
records (what it logged).
"""

from qs.star.round import generate_rationales
from qs.star.run import StarRun
from qs.star.tasks import Problem, Task, task_of
