"""Text on disk and what is made of it: token shards, batches, questions, prompts, generated text.

Read dataset first, then documents and prepare (text to shards), completions, question_sets with
prompts and answers, and the two makers of text, arithmetic and synthetic. Imports no torch.
"""

from qs.data.answers import final_number, majority, parse_choice, parse_number, stated_number
from qs.data.completions import CompletionBatch, Completions
from qs.data.dataset import Batch, TokenDataset, Windows, resolve_data, sequential
from qs.data.documents import DocumentReader
from qs.data.prepare import prepare_dataset
from qs.data.prompts import few_shot
from qs.data.question_sets import BenchmarkQuestion, questions_of, read_questions
from qs.data.synthetic import World, read_recipe

__all__ = [
    "Batch",
    "BenchmarkQuestion",
    "CompletionBatch",
    "Completions",
    "DocumentReader",
    "TokenDataset",
    "Windows",
    "World",
    "few_shot",
    "final_number",
    "majority",
    "parse_choice",
    "parse_number",
    "prepare_dataset",
    "questions_of",
    "read_questions",
    "read_recipe",
    "resolve_data",
    "sequential",
    "stated_number",
]
