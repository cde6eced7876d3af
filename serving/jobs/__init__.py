"""Jobs in a database: what was requested, how far it is, its result. Stored before the caller is answered.

`transitions` has the legal changes of status, `store` makes each in one transaction together with its event,
`artifacts` stores the files, `dispatcher` leases queued jobs and hands them to an engine. Imports no torch.
"""
