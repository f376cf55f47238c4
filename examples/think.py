"""Think about a text: what the bundled model thinks, what it says with and without its thoughts."""

import sys

import qs

# it has not learned to mix yet: weight 1 takes the prediction after the thought as it is
model = qs.load("tiny", thoughts=5, start_text=":", end_text=";", fixed_weight=1.0)
text = sys.argv[1] + "\n" if sys.argv[1:] else "71600\n"  # the last digit of a sum

print(f"{model}\n\nthoughts after {text!r}")
print(model.think(text))
print("\nwhat follows")
print(model.predict(text))

right = [each for each in model.predict(text) if each.thought.text == "78444"]
print(f"\n{len(right)} of 4 thoughts add up: 7, 8, 14, 14, 14 by last digit")
print(f"with a thought before each token it goes on {model.generate(text, max_tokens=1)}")
