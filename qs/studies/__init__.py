"""What a sceptic asks for: other explanations of a gain, trained and measured; models side by side.

Read controls (what is compared, and the rows that say it), control_runs (training and measuring
it), compare, star_rounds, plots. Nothing else imports this room.
"""
