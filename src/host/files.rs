//! Files written once, synced and renamed into place; paths confined to a directory.
