"""What every file may use and no reader must open: array modules, masks, contracts of arguments, files, tables."""
