-- Reply the standing

return finish_or_fail()
