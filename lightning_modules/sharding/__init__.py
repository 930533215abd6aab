"""FSDP2: the thinker's weights split over devices, trained, evaluated and saved; the talkers are whole on each."""
