"""The plugins that come with automl-tl, one module each, found through entry points like anybody's.

They import `automl_tl.plugin` and nothing else of ours. The networks that need torch lie in `networks/` and are
imported when one is built, so that listing plugins does not load torch.
"""
