"""What a start would refuse, found before anything is started or replaced.

`app.check` asks the machine it runs on, `app.build` the nodes of the cluster; only these two import it.
"""
