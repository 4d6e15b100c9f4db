"""The playground: a web page to talk to the model and to watch the engine.

One page, put together once from the files beside this module: `index.html` with the style and the
scripts inside it. It holds no data and asks no other host for anything; everything it shows comes
through the same API that clients use, with the key that its reader types in.
"""
