-- Note what became of a client.

leave_place()
return 1
