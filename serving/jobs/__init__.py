"""Jobs: what was asked, how far it is, what came of it; kept on disk before the caller is answered.

`states` says which changes are legal, `store` makes each in one transaction together with its event, `artifacts` keeps
the files, `dispatcher` hands queued jobs to an engine. Imports no torch.
"""
