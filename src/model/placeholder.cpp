// empty until the first source lands
