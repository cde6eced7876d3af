"""Choosing thresholds by what people prefer (paper, section 3.3 and appendix E.2).

prepare: for each axis, subsets without the worst 0, 12.5, 25 and 50% of the clips; a proxy trained on each by a recipe;
clips sampled from the same held-out stills. vote: a blinded page of pairs. fit: Elo and Bradley-Terry, and a thresholds
file with the evidence in it. Every step goes on where it was interrupted.
"""
