"""Using a model that thinks: going on from text, and scoring text that is given.

Read generate (a thought before each output token) with decoding and cache, write (texts up to a
stop), shown (on a terminal), loglikelihood. The function `write` is imported from the file of that
name.
"""

from qs.inference.decoding import Decoding, Generated, OutputToken
from qs.inference.generate import Stream
from qs.inference.loglikelihood import ScoredText, TextScore, Thinking, score
from qs.inference.write import Written
