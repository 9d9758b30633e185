mod suspension;
