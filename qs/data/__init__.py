"""Text on disk and what is made of it: token shards, batches, questions, prompts, generated text.

Read dataset, documents, prepare (text to shards), completions, question_sets with prompts and
answers, and the makers of text, arithmetic and synthetic. Without torch until a batch is made.
"""

from qs.data.completions import Completions
from qs.data.dataset import TokenDataset, Windows, resolve_data, sequential
from qs.data.documents import DocumentReader
from qs.data.prepare import prepare_dataset
from qs.data.question_sets import read_questions
