"""`dijiang chat`: a conversation in the terminal, answers streamed as they are made."""
