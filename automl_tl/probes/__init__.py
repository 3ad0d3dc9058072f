"""What can be known of stored features without training: closed-form and convex classifiers, scores, rankings of taps.

numpy and scipy only. Nothing here knows backbones or files: features come as arrays, results leave as plain data.
"""
